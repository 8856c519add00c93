"""Dates and times in any usual writing are told from codes, names and numbers."""

from collections import Counter

import pytest

from thalweg.data.columns.dates import is_moment, moments

DATES = """
2024-01-31|2024/01/31|2024.01.31|31.01.2024|1/2/2024|2024-1-5|31.01.24|01/31/24|1-2-24|24-01-31|01-Jan-24|1 Jan 2024
Jan 1, 2024|January 31, 2024|31 January 2024|Jan-24|Jan 2024|Jan-2024|Jan 5|01JAN2024|01Jan24|2024 Jan 31|Sept 5 2024
5th of March 2024|Monday 5 January 2024|Wed Jan 31 12:05:00 2024|Mon, 31 Jan 2024 12:05:00 GMT|01-JAN-2024 12:05:00.000
2024-01|2024/01|01/2024|2024-W05|2024-W05-3|2024-031|2024-Q1|Q1 2024|2024-01-31 12:05|2024-01-31T12:05:00.123Z
2024-01-31T12:05:00,123|2024-01-31 12:05:00+01:00|20240131T120500Z|2024-01-31_12-05-00|2024-01-31 12.05.00
31/Jan/2024:12:05:00 +0000|1. März 2024|01-Mär-24|31 janvier 2024|01-ene-24|31 января 2024|Dez 2024|2024年1月31日|31.01.
01/31|12:05|12:05:00 PM|3 pm|10 a.m.|1:05.3|12h05|00:00:01.5|1 day, 2:00:00|5 days 02:00:00|PT5M
"""
OTHERS = """
May|Mon|Tue|sat|sun|march|Sept|A12|12A|12B|u|am|10|1.5|T1|m1|1-2|20-30|15-19|555-1234|12345-678|1.2.3|10.0.0.1|192.168.1.1
v1.2|3+|Q1|Q5 2024|5 kg|0_00|site 1|row 17|X-12-24|12-ABC-24|AB-2024|2024-A|model 2024|120/80|12/80|1/2|10x20|4th|1st
S12E03|99-99-99|aa:bb:cc:dd|00:1a:2b:3c:4d:5e|60 km/h|3 sec|zone 3|K-9|maybe 5|marker 7|Mark 12|dec12x|julia-7|mar 45678
P5|2024|20240131|5 days old|second|2019/A|12-34-56
"""


@pytest.mark.parametrize("text", [text for line in DATES.split("\n") if line for text in line.split("|")])
def test_dates_and_times(text):
    assert is_moment(text)
    assert is_moment(f" {text} ")


@pytest.mark.parametrize("text", [text for line in OTHERS.split("\n") if line for text in line.split("|")])
def test_what_is_no_date(text):
    assert not is_moment(text)


def test_the_share_is_of_rows():
    assert moments(Counter({"01-Jan-24": 3, "x": 1})) == 0.75
    assert moments(Counter()) == 0.0
    many = Counter(f"{i % 28 + 1:02d}-Jan-{i // 28 + 10}" for i in range(2000))
    assert len(many) > 400
    assert moments(many) == 1.0
    assert moments(Counter({f"code {i}": 1 for i in range(2000)}) + Counter({"01-Jan-24": 5})) < 0.1
