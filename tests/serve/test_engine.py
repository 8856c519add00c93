"""The engine: who shares a call, who gets which answer, and what is never computed (trust rows R21, R27, L7)."""

import asyncio
import os
import sys
import threading
from collections import deque

import numpy as np
import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.serve.engine.cost import Cost, measure
from thalweg.serve.engine.engine import STUCK, Engine
from thalweg.serve.engine.job import Job
from thalweg.serve.engine.rejected import Rejected, WorkerLost
from thalweg.serve.engine.scoring import NICER
from thalweg.serve.engine.start import at_once
from thalweg.serve.engine.waiting import Waiting
from thalweg.serve.engine.worker import Outcome
from thalweg.serve.metrics import Metrics

from .engine_fakes import SECONDS, Clock, InThreads, Sums, busy, cost, counted, counting, row, running, settled


def run(test, longest=20):
    """Run a coroutine function as a test, so many seconds at most: a fault may make it wait for ever."""
    return asyncio.run(asyncio.wait_for(test(), longest))


def test_a_lone_request_goes_at_once_and_those_that_come_meanwhile_share_a_call(monkeypatch):
    async def test():
        async with busy(monkeypatch, value=1) as (engine, model, first):
            # nothing else was there to wait for
            others = [asyncio.create_task(engine.score("m", row(value))) for value in range(2, 12)]
            await settled(lambda: engine._waiting.rows == 10)
            model.gate.set()
            found = await asyncio.gather(first, *others)
            assert [float(answer["energy"][0]) for answer in found] == list(range(1, 12))
            assert [len(call) for call in model.calls] == [1, 10]

    run(test)


@pytest.mark.parametrize(("size", "requests", "calls"), [(1, 10, [1, 4, 4, 2]), (3, 3, [1, 3, 3, 3])])
def test_a_call_has_no_more_rows_than_its_measured_bound(monkeypatch, size, requests, calls):
    async def test():
        model = Sums(open=False)
        async with running(monkeypatch, {"m": model}, costs={id(model): cost(most=4)}) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(0)))]
            await model.until_entered()
            tasks += [asyncio.create_task(engine.score("m", row(*[value] * size))) for value in range(requests)]
            await settled(lambda: engine._waiting.rows == size * requests)
            model.gate.set()
            await asyncio.gather(*tasks)
            assert [len(call) for call in model.calls] == calls

    run(test)


def test_a_large_request_goes_in_pieces_and_others_between_them(monkeypatch):
    async def test():
        model = Sums(open=False)
        async with running(monkeypatch, {"m": model}, costs={id(model): cost(most=4)}) as engine:
            large = asyncio.create_task(engine.score("m", row(*range(100, 110))))
            await model.until_entered()
            small = asyncio.create_task(engine.score("m", row(1)))
            await settled(lambda: engine._waiting.rows == 7)
            model.gate.set()
            assert (await small)["energy"].tolist() == [1]
            assert (await large)["energy"].tolist() == list(range(100, 110))
            firsts = [call[:, 0].tolist() for call in model.calls]
            assert firsts in (
                [[100, 101, 102, 103], [1], [104, 105, 106, 107], [108, 109]],
                [[100, 101, 102, 103], [104, 105, 106, 107], [1, 108, 109]],
            )

    run(test)


def test_alpha_is_that_of_each_request(monkeypatch):
    async def test():
        async with busy(monkeypatch) as (engine, model, first):
            alphas = (0.3, None, 0.7)
            tasks = [asyncio.create_task(engine.score("m", row(0.5, 0.2), alpha=alpha)) for alpha in alphas]
            await settled(lambda: engine._waiting.rows == 6)
            model.gate.set()
            await first
            flags = [answer["flag"].tolist() for answer in await asyncio.gather(*tasks)]
            np.testing.assert_array_equal(model.alphas[1], [0.3, 0.3, np.nan, np.nan, 0.7, 0.7])
            assert flags[0] == [False, True]
            assert flags[2] == [True, True]

    run(test)


def test_requests_of_other_shapes_types_or_names_do_not_share_a_call(monkeypatch):
    async def test():
        model = Sums(open=False)
        async with running(monkeypatch, {"m": model}) as engine:
            rows = [
                row(1),
                {"x": np.ones((1, 3))},
                {"x": np.ones((1, 2), np.float32)},
                {"x": np.ones((1, 2)), "y": np.ones(1)},
                {"x": np.ones((1, 2)), "y": np.ones(2)},
            ]
            first = asyncio.create_task(engine.score("m", row(0)))
            await model.until_entered()
            tasks = [asyncio.create_task(engine.score("m", one)) for one in rows * 2]
            await settled(lambda: engine._waiting.rows == 10)
            model.gate.set()
            await asyncio.gather(first, *tasks)
            assert sorted(len(call) for call in model.calls) == [1, 1, 1, 2, 2, 2, 2]

    run(test)


def test_a_fault_reaches_its_own_request_alone(monkeypatch):
    """A UserError, another error, and answers of a wrong length, each in a call with good requests."""

    def fault(x):
        if (x[:, 0] == 13).any():
            raise RuntimeError("thirteen")

    async def test():
        async with busy(monkeypatch) as (engine, model, first):
            model.fault = fault
            values = [1, float("nan"), 2, 13, 3]
            tasks = [asyncio.create_task(engine.score("m", row(value))) for value in values]
            await settled(lambda: engine._waiting.rows == 5)
            model.gate.set()
            found = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert [float(found[i]["energy"][0]) for i in (0, 1, 3, 5)] == [0, 1, 2, 3]
            assert isinstance(found[2], UserError)
            assert isinstance(found[4], RuntimeError)

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back(monkeypatch):
    async def test():
        model = Sums(open=False)
        async with running(monkeypatch, {"m": model}, queue=4) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(0)))]
            await model.until_entered()
            tasks += [asyncio.create_task(engine.score("m", row(value))) for value in range(1, 5)]
            await settled(lambda: engine._waiting.rows == 4)
            assert engine.state()[:2] == (False, True)
            with pytest.raises(Rejected) as caught:
                await engine.score("m", row(9))
            assert caught.value.reason == "full"
            assert caught.value.retry_after >= 1
            model.gate.set()
            await asyncio.gather(*tasks)
            assert engine.state().ready
            assert 9 not in model.seen()
            assert counted(engine, "thalweg_rejected_total") == 1

    run(test)


def test_a_request_of_any_size_is_taken_while_half_the_queue_is_free(monkeypatch):
    """Some rows that wait are no reason to refuse the largest request; a second one must leave room for others."""

    async def test():
        async with busy(monkeypatch, queue=4) as (engine, model, first):
            tasks = [first, *(asyncio.create_task(engine.score("m", row(value))) for value in (1, 2))]
            await settled(lambda: engine._waiting.rows == 2)
            tasks.append(asyncio.create_task(engine.score("m", row(3, 4, 5, 6))))
            await settled(lambda: engine._waiting.rows == 6)
            for rows in (1, 4):
                with pytest.raises(Rejected) as caught:
                    await engine.score("m", row(*range(rows)))
                assert caught.value.reason == "full"
            model.gate.set()
            assert (await asyncio.gather(*tasks))[-1]["energy"].tolist() == [3, 4, 5, 6]

    run(test)


def test_what_would_wait_too_long_is_refused_at_once(monkeypatch):
    """By estimate: a call takes a second, so the fourth would wait for longer than it may."""

    async def test():
        model = Sums(open=False)
        costs = {id(model): cost(one=1.0, most=1)}
        async with running(monkeypatch, {"m": model}, costs=costs, deadline=3.5) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(value))) for value in range(3)]
            await settled(lambda: engine._waiting.rows == 2)
            with pytest.raises(Rejected) as caught:
                await engine.score("m", row(9))
            assert caught.value.reason == "full"
            with pytest.raises(Rejected) as caught:
                await engine.score("m", row(9), deadline=0.5)
            assert caught.value.reason == "deadline"
            model.gate.set()
            await asyncio.gather(*tasks)

    run(test)


def test_late_requests_are_answered_and_never_computed(monkeypatch):
    """L7: a deadline passed in line; no call is made for nobody."""

    async def test():
        clock = Clock()
        async with busy(monkeypatch, value=1, clock=clock) as (engine, model, first):
            late = [asyncio.create_task(engine.score("m", row(value), deadline=5)) for value in (2, 3)]
            good = asyncio.create_task(engine.score("m", row(4)))
            await settled(lambda: engine._waiting.rows == 3)
            clock.now = 6.0
            model.gate.set()
            assert [float((await task)["energy"][0]) for task in (first, good)] == [1, 4]
            for task in late:
                with pytest.raises(Rejected) as caught:
                    await task
                assert caught.value.reason == "deadline"
            assert model.seen() == {1, 4}
            assert counted(engine, "thalweg_wasted_batches_total") == 0

    run(test)


def test_a_late_request_is_counted_once(monkeypatch):
    """R28: also where a worker and a look find it late at the same time."""

    async def test():
        clock = Clock()
        async with busy(monkeypatch, clock=clock) as (engine, model, first):
            late = asyncio.create_task(engine.score("m", row(2), deadline=5))
            await settled(lambda: engine._waiting.rows == 1)
            job = [*engine._jobs.every][-1]
            clock.now = 6.0
            await engine.look()
            engine._settle(Outcome([job]))
            with pytest.raises(Rejected):
                await late
            assert counted(engine, "thalweg_rejected_total") == 1
            model.gate.set()
            await first

    run(test)


def test_a_deadline_is_answered_while_the_worker_hangs(monkeypatch):
    async def test():
        clock = Clock()
        async with busy(monkeypatch, value=1, deadline=5, clock=clock) as (_, _, task):
            clock.now = 6.0
            with pytest.raises(Rejected) as caught:
                await task
            assert caught.value.reason == "deadline"

    run(test)


@pytest.mark.parametrize("how", ["cancelled", "gone"])
def test_work_whose_client_has_left_is_never_computed(monkeypatch, how):
    """L7."""

    async def test():
        model, left = Sums(open=False), False

        async def gone():
            return left

        async with running(monkeypatch, {"m": model}) as engine:
            first = asyncio.create_task(engine.score("m", row(1)))
            await model.until_entered()
            leaving = [asyncio.create_task(engine.score("m", row(value), gone=gone)) for value in (2, 3)]
            good = asyncio.create_task(engine.score("m", row(4)))
            await settled(lambda: engine._waiting.rows == 3)
            left = how == "gone"
            if left:
                await engine.look()
            else:
                for task in leaving:
                    task.cancel()
            await settled(lambda: engine._waiting.rows == 1)
            model.gate.set()
            await asyncio.gather(first, good)
            results = await asyncio.gather(*leaving, return_exceptions=True)
            kind = Rejected if how == "gone" else asyncio.CancelledError
            assert all(isinstance(result, kind) for result in results)
            assert model.seen() == {1, 4}
            assert counted(engine, "thalweg_wasted_batches_total") == 0
            assert counted(engine, "thalweg_rejected_total") == 2

    run(test)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_answer_reaches_another_caller(monkeypatch, count):
    """R21: mixed requests, a tenth of them poisoned; each good answer is its own, by a nonce, as if scored alone."""

    async def test():
        generator, model, gone_now = np.random.default_rng(21), Sums(), set()
        model.fault = lambda x: None
        order = generator.permutation(count)

        async def one(engine, nonce):
            size = int(generator.integers(1, 5))
            x = np.column_stack([np.full(size, nonce), generator.random(size)])
            poison = nonce % 10 == 0
            kind = (nonce // 10) % 4 if poison else None
            if kind == 0:
                x[0, 1] = np.nan
            if kind == 1:
                x = np.column_stack([x, x])
            alpha = float(generator.random()) * count if nonce % 3 else None

            async def gone():
                return kind == 2

            task = asyncio.create_task(engine.score("m", {"x": x}, alpha=alpha, gone=gone))
            await asyncio.sleep(float(generator.random()) * 0.001)
            if kind == 3:
                task.cancel()
            try:
                found = await task
            except (UserError, Rejected, asyncio.CancelledError):
                assert poison
                gone_now.add(nonce)
                return 0
            energy = x.reshape(len(x), -1).sum(1)
            np.testing.assert_allclose(found["energy"], energy, rtol=1e-5)
            np.testing.assert_array_equal(
                found["flag"], energy <= (0.01 if alpha is None else alpha) if alpha else found["flag"]
            )
            return 1

        async with running(monkeypatch, {"m": model}, queue=10**6) as engine:
            engine._admission.queue = 10**6
            monkeypatch.setattr("thalweg.serve.engine.admission.PATIENCE", SECONDS)
            good = await asyncio.gather(*[one(engine, int(nonce)) for nonce in order])
            assert sum(good) >= 0.9 * count
            assert max(len(call) for call in model.calls) > 1

    run(test, 120)


def test_models_and_streams_share_the_worker(monkeypatch):
    """A backlog of one model, or a long stream, does not keep another model's request waiting for all of it."""

    async def test():
        busy, other = Sums(open=False), Sums()
        costs, before = {id(busy): cost(most=1)}, []
        other.fault = lambda x: before.append(len(busy.calls))
        async with running(monkeypatch, {"busy": busy, "other": other}, costs=costs) as engine:
            backlog = [asyncio.create_task(engine.score("busy", row(value))) for value in range(20)]
            await busy.until_entered()
            lone = asyncio.create_task(engine.score("other", row(1)))
            await settled(lambda: engine._waiting.rows == 20)
            busy.gate.set()
            await lone
            assert before == [1]
            await asyncio.gather(*backlog)

    run(test)


def test_scores_go_between_the_items_of_a_stream(monkeypatch):
    async def test():
        model, seen = Sums(), []

        def items():
            with torch.no_grad():  # must not stay on for others
                for number in range(5):
                    yield number, torch.is_grad_enabled()

        def grad(x):
            seen.append(torch.is_grad_enabled())

        model.fault = grad
        async with running(monkeypatch, {"m": model}) as engine:
            found = []
            async for item in engine.stream("m", items):
                found.append(item)
                assert (await engine.score("m", row(1)))["energy"].tolist() == [1]
            assert found == [(number, False) for number in range(5)]
            assert all(seen)

    run(test)


def test_a_stream_that_is_left_is_closed_by_the_worker(monkeypatch):
    async def test():
        model, log = Sums(), []
        async with running(monkeypatch, {"m": model}) as engine:
            items = engine.stream("m", lambda: counting(10**9, log))
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
            await items.aclose()
            await settled(lambda: log == ["closed"])

    run(test)


def test_an_error_in_a_stream_is_its_readers(monkeypatch):
    async def test():
        def items():
            yield 1
            raise UserError("must be other")

        model = Sums()
        async with running(monkeypatch, {"m": model}) as engine:
            found = engine.stream("m", items)
            assert await anext(found) == 1
            with pytest.raises(UserError):
                await anext(found)
            assert await engine.call("m", lambda: "on") == "on"

    run(test)


def test_a_cheap_model_is_called_on_the_event_loop(monkeypatch):
    async def test():
        cheap, dear = Sums(), Sums()
        costs = {id(cheap): cost(one=5e-5, of_most=6e-5)}
        async with running(monkeypatch, {"cheap": cheap, "dear": dear}, costs=costs) as engine:
            await engine.score("cheap", row(1))
            await engine.score("dear", row(1))
            assert cheap.threads == [threading.get_ident()]
            assert dear.threads != [threading.get_ident()]

    run(test)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one priority for all threads of a process")
def test_the_event_loop_goes_before_the_worker(monkeypatch):
    async def test():
        dear, found = Sums(), []
        dear.fault = lambda x: found.append(os.getpriority(os.PRIO_PROCESS, 0))
        own = os.getpriority(os.PRIO_PROCESS, 0)
        async with running(monkeypatch, {"dear": dear}) as engine:
            await engine.score("dear", row(1))
        assert found == [min(19, own + NICER)]
        assert os.getpriority(os.PRIO_PROCESS, 0) == own

    run(test)


def test_nothing_is_computed_at_the_same_time(monkeypatch):
    """A cheap call waits in line while the worker computes: no model need be safe for threads."""

    async def test():
        cheap, dear = Sums(), Sums(open=False)
        costs = {id(cheap): cost(one=5e-5, of_most=6e-5)}
        async with running(monkeypatch, {"cheap": cheap, "dear": dear}, costs=costs) as engine:
            first = asyncio.create_task(engine.score("dear", row(1)))
            await dear.until_entered()
            second = asyncio.create_task(engine.score("cheap", row(1)))
            await asyncio.sleep(0.01)
            assert not cheap.calls
            dear.gate.set()
            await asyncio.gather(first, second)
            assert cheap.threads == dear.threads

    run(test)


def test_a_second_worker_takes_scores_where_several_wait_or_the_first_does_something_else(monkeypatch):
    async def test():
        model, work = Sums(open=False), threading.Event()
        costs = {id(model): cost(most=32)}
        async with running(monkeypatch, {"m": model}, costs=costs, processes=2, clock=Clock()) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(1)))]
            await model.until_entered()
            tasks.append(asyncio.create_task(engine.score("m", row(2))))
            await settled(lambda: engine._waiting.rows == 1)
            await asyncio.sleep(0.1)
            assert [len(call) for call in model.calls] == [1]  # a call of one row costs more than its share of the next
            tasks.append(asyncio.create_task(engine.score("m", row(3))))
            await model.until_entered()
            assert [len(call) for call in model.calls] == [1, 2]
            model.gate.set()
            await asyncio.gather(*tasks)

            begun = threading.Event()
            tasks = [asyncio.create_task(engine.call("m", lambda: begun.set() or work.wait(60))) for _ in range(2)]
            await asyncio.to_thread(begun.wait, 60)
            assert (await engine.score("m", row(4)))["energy"].tolist() == [4]
            assert len(engine._waiting.taken) == 1  # the other call waits for the first worker
            work.set()
            await asyncio.gather(*tasks)

    run(test)


class Draws(Sums):
    def sample(self, n, **how):
        raise NotImplementedError

    sample_frames = sample


@pytest.mark.parametrize(("cores", "given", "workers"), [(2, None, 2), (2, 1, 1), (1, None, 1)])
def test_scores_do_not_wait_for_draws_where_there_is_a_processor_for_each(monkeypatch, cores, given, workers):
    """And two calls of scores are not computed at once for that: they take the event loop's processor."""
    work, begun = threading.Event(), threading.Event()

    async def test():
        model = Draws()
        monkeypatch.setattr("thalweg.serve.engine.start.cpu_count", lambda: cores)
        monkeypatch.setattr("thalweg.serve.engine.engine.at_once", lambda *_: 1)
        async with running(monkeypatch, {"m": model}, processes=given, clock=Clock()) as engine:
            assert len(engine._workers.every) == workers
            drawn = asyncio.create_task(engine.call("m", lambda: begun.set() or work.wait(60)))
            await asyncio.to_thread(begun.wait, 60)
            waits = [asyncio.create_task(engine.call("m", lambda: None)) for _ in range(20)]
            await settled(lambda: engine._waiting.rows == 20)
            engine._admission._others["m", "call"] = deque([1.0])
            assert engine._admission.wait("m", "score") == (0 if workers == 2 else 2)  # for two of the calls
            if workers == 2:
                assert (await engine.score("m", row(1)))["energy"].tolist() == [1]
                model.gate.clear()
                tasks = [asyncio.create_task(engine.score("m", row(2)))]
                await settled(lambda: len(model.calls) == 2)
                tasks.append(asyncio.create_task(engine.score("m", row(3))))
                work.set()
                await asyncio.gather(drawn, *waits)
                await asyncio.sleep(0.05)
                assert len(model.calls) == 2
                model.gate.set()
                await asyncio.gather(*tasks)
            work.set()
            await asyncio.gather(drawn, *waits)

    run(test)


@pytest.mark.parametrize(
    ("waiting", "before", "first", "second"),
    [(2, 0, 2, 0), (9, 0, 5, 4), (45, 19, 32, 13), (32, 32, 32, 0), (20, 32, 20, 0), (99, 32, 64, 35)],
)
def test_calls_of_one_worker_are_alike(waiting, before, first, second):
    """Where 64 clients ask again once they are answered, a call has 32 rows, not 45 and 19 by turns."""
    loop, line = asyncio.new_event_loop(), Waiting({"m": 64 if waiting > 9 else 8}, {}, lambda: 0.0)

    def come(rows):
        for _ in range(rows):
            line.add(Job(model="m", kind="score", size=1, deadline=1.0, future=loop.create_future(), signature=()))

    def taken():
        piece, _ = line.take()
        if piece is not None:
            line.finished(0, piece, 0.0)
        return 0 if piece is None else piece.rows

    come(before)
    assert taken() == before
    come(waiting)
    assert [taken(), taken()] == [first, second]
    loop.close()


def test_a_worker_takes_one_piece_ahead_and_only_of_scores():
    loop, clock = asyncio.new_event_loop(), Clock()
    line = Waiting({"m": 1}, {}, clock)

    def come(kind):
        line.add(Job(model="m", kind=kind, size=1, deadline=9.0, future=loop.create_future(), signature=()))

    for _ in range(3):
        come("score")
    (first, _), (second, _) = line.take(), line.take(scores_only=True)
    assert line.taken[0][0] is first
    assert line.ahead == {0: second}
    clock.now = 2.0
    line.finished(0, first, 2.0)
    assert line.taken[0] == (second, 2.0)
    assert not line.ahead
    come("call")
    assert line.take(scores_only=True) == (None, [])  # it is the call's turn, which scores may not hold up
    line.finished(0, second, 1.0)
    third = line.take()[0]
    assert third.kind == "call"
    assert line.release(0) == [third]
    (first, _), _ = line.take(), come("score")
    assert [first, line.take(scores_only=True)[0]] == line.release(0)
    assert not line.taken
    assert not line.ahead
    loop.close()


@pytest.mark.parametrize("other", [("n", "score"), ("m", "call")])
def test_what_is_taken_ahead_is_fair_to_other_lanes(other):
    """The call that is computed counts: else each model had two calls in line before another one's."""
    loop, clock, order = asyncio.new_event_loop(), Clock(), []
    line = Waiting({"m": 1, "n": 1}, {}, clock)

    def come(model, kind="score"):
        line.add(Job(model=model, kind=kind, size=1, deadline=99.0, future=loop.create_future(), signature=()))

    come("m")
    piece, _ = line.take()
    for _ in range(4):
        come("m")
        come(*other)
    while piece is not None:
        order.append(piece.lane)
        clock.now += 0.9
        if piece.kind == "score":
            line.take(scores_only=True, expected_seconds=1.0)
        clock.now += 0.1
        line.finished(0, piece, 1.0)
        piece = line.taken[0][0] if line.taken else line.take()[0]
    assert order == [("m", "score"), *4 * [other, ("m", "score")]]
    loop.close()


class Ahead(InThreads):
    """As a process: another call is handed over while the first is computed. `events`: in their order."""

    def __init__(self, models, die=0):
        super().__init__(models)
        self.events, self.queue, self.may, self.die = [], deque(), threading.Event(), die

    def begin(self):
        self.queue.clear()

    def ask(self, model, inputs, alpha, threads):
        self.events.append(("ask", float(inputs["x"][0, 0])))
        self.queue.append((model, inputs, alpha, threads))

    def answers_within(self, seconds):
        assert self.may.wait(60)
        return False

    def answer(self):
        asked = self.queue.popleft()
        self.events.append(("answer", float(asked[1]["x"][0, 0])))
        if self.die:
            self.die -= 1
            raise SystemExit
        return self.score(*asked)


class Wide(Sums):
    """An output's width changes with each call."""

    def score(self, rows, *, alpha=None):
        return {**super().score(rows), "width": np.zeros((len(rows["x"]), len(self.calls)))}


def test_answers_that_are_in_no_figure_end_no_worker(monkeypatch):
    """They are looked at some hundred together."""

    async def test():
        async with running(monkeypatch, {"m": Wide()}) as engine:
            for _ in range(10):
                assert (await engine.score("m", row(*range(30)), deadline=5.0))["energy"].tolist() == [*range(30)]
            assert engine.state().ready
            assert engine.metrics.text()

    run(test)


def test_parts_that_do_not_fit_together_fail_their_request(monkeypatch):
    async def test():
        async with running(monkeypatch, {"m": Wide()}) as engine:
            with pytest.raises(ValueError, match="dimension"):
                await engine.score("m", row(*range(100)), deadline=5.0)

    run(test)


def test_what_a_worker_hands_over_ahead_is_of_the_model_that_has_had_less(monkeypatch):
    async def test():
        models = {"m": Sums(), "n": Sums()}
        engine = Engine(models, queue=8, deadline=9.0, metrics=Metrics(), processes=1)
        monkeypatch.setattr("thalweg.serve.engine.scoring.measured", lambda *_: cost(one=1.0, most=1))
        engine.scoring = scoring = Ahead(engine.models)
        await engine.start()
        tasks = [asyncio.create_task(engine.score(model, row(i))) for i, model in enumerate("mmn")]
        await settled(lambda: len(engine._jobs.every) == 3 and scoring.events)
        scoring.may.set()
        await asyncio.gather(*tasks)
        assert [value for what, value in scoring.events if what == "ask"] == [0, 2, 1]
        await engine.drain(1)

    run(test)


@pytest.mark.parametrize("die", [0, 1, 2])
def test_the_next_call_is_handed_over_before_the_end_of_the_one_before(monkeypatch, die):
    """And both are tried once more where their worker ends, for which that one is not blamed."""

    async def test():
        model = Sums()
        engine = Engine({"m": model}, queue=8, deadline=9.0, metrics=Metrics(), processes=1)
        monkeypatch.setattr("thalweg.serve.engine.scoring.measured", lambda *_: cost(one=1.0, most=1))
        engine.scoring = scoring = Ahead(engine.models, die)
        await engine.start()
        tasks = [asyncio.create_task(engine.score("m", row(value))) for value in (1, 2)]
        await settled(lambda: len(engine._jobs.every) == 2 and scoring.events)
        scoring.may.set()
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, WorkerLost) if die > 1 else first["energy"].tolist() == [1]
        assert second["energy"].tolist() == [2]
        assert scoring.events[:3] == [("ask", 1), ("ask", 2), ("answer", 1)]
        assert scoring.events[3:] == ([("answer", 2)] if not die else scoring.events[3:])
        assert not engine._waiting.taken
        await engine.drain(1)

    run(test)


@pytest.mark.parametrize(
    ("waiting", "first", "second"), [(2, 2, 0), (8, 8, 0), (20, 10, 10), (31, 16, 15), (99, 16, 16)]
)
def test_workers_share_what_waits(waiting, first, second):
    """In calls of half their bound at least, as smaller ones cost more a row."""
    loop, line = asyncio.new_event_loop(), Waiting({"m": 16}, {"m": 2}, lambda: 0.0)
    for _ in range(waiting):
        line.add(Job(model="m", kind="score", size=1, deadline=1.0, future=loop.create_future(), signature=()))
    found = [line.take(worker)[0] for worker in (0, 1)]
    assert [0 if piece is None else piece.rows for piece in found] == [first, second]
    loop.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_row_waits_for_a_worker_that_hangs_while_another_is_free(at_once):
    loop, clock = asyncio.new_event_loop(), Clock()
    line = Waiting({"m": 32}, {"m": at_once}, clock)
    for worker, piece in ((0, True), (1, False)):
        line.add(Job(model="m", kind="score", size=1, deadline=9.0, future=loop.create_future(), signature=()))
        assert (line.take(worker)[0] is not None) is piece
    assert not line.offered(1)
    clock.now = 1.0
    assert line.offered(1)
    assert line.take(1)[0] is not None
    loop.close()


def test_parts_of_a_request_that_end_in_another_order_are_one_answer(monkeypatch):
    """R21: two workers compute parts of it at the same time."""
    rest = threading.Event()

    def fault(x):
        if x[-1, 0] == 9:
            rest.set()
        if x[0, 0] == 0:
            assert rest.wait(60)

    async def test():
        model = Sums()
        async with running(monkeypatch, {"m": model}, costs={id(model): cost(most=4)}, processes=2) as engine:
            model.fault = fault
            found = await engine.score("m", row(*range(10)))
            assert found["energy"].tolist() == list(range(10))
            assert sum(len(call) for call in model.calls) == 10

    run(test)


def test_workers_wake_each_other(monkeypatch):
    """For the rest of a request, and for what one of them lets wait for other work: the engine need not look."""

    async def test():
        model, begun, work = Sums(open=False), threading.Event(), threading.Event()
        async with running(monkeypatch, {"m": model}, costs={id(model): cost(most=32)}, processes=2) as engine:
            engine._watch.cancel()
            engine._admission.cheap = lambda *_: False
            large = asyncio.create_task(engine.score("m", row(*range(99))))
            for _ in range(2):
                await model.until_entered()
            model.gate.set()
            await large
            await settled(lambda: all(worker.idle for worker in engine._workers.every))
            model.gate.clear()
            tasks = [asyncio.create_task(engine.score("m", row(1)))]
            await settled(lambda: len(engine._waiting.taken) == 1)
            tasks.append(asyncio.create_task(engine.call("m", lambda: begun.set() or work.wait(60))))
            tasks.append(asyncio.create_task(engine.score("m", row(2))))
            await settled(lambda: engine._waiting.rows == 2)
            engine._waiting._active["m", "score"].used = 9.0  # the call is next
            model.gate.set()
            assert (await tasks[2])["energy"].tolist() == [2]
            assert begun.is_set()
            work.set()
            await asyncio.gather(*tasks)

    run(test)


def test_workers_beside_the_first_are_made_warm_at_the_same_time(monkeypatch):
    """A barrier that lets nobody pass alone: a start does not grow with the processors."""
    others = threading.Barrier(3)

    class Met(InThreads):
        def others(self, count):
            return [Met(self.models, others) for _ in range(count)]

        def __init__(self, models, barrier=None):
            super().__init__(models)
            self.barrier = barrier

        def warm(self, model, rows, threads):
            assert self.barrier is not None
            self.barrier.wait(10)
            super().warm(model, rows, threads)

        def measured(self, model, threads):
            assert self.barrier is None  # the first one alone
            return cost()

    async def test():
        model = Sums()
        engine = Engine({"m": model}, queue=8, deadline=9.0, metrics=Metrics(), processes=4)
        engine.scoring = Met(engine.models)
        await engine.start()
        assert sorted(len(call) for call in model.calls) == [1, 1, 1, 32, 32, 32]  # two calls make each warm
        assert (await engine.score("m", row(1)))["energy"].tolist() == [1]
        await engine.drain(1)

    run(test)


def test_a_second_worker_that_ends_is_replaced(monkeypatch):
    """R27."""

    def fault(x):
        if (x[:, 0] == 13).any():
            raise SystemExit

    async def test():
        model, work, begun = Sums(), threading.Event(), threading.Event()
        model.fault = fault
        async with running(monkeypatch, {"m": model}, processes=2) as engine:
            call = asyncio.create_task(engine.call("m", lambda: begun.set() or work.wait(60)))
            await asyncio.to_thread(begun.wait, 60)
            with pytest.raises(WorkerLost):
                await engine.score("m", row(13))
            assert (await engine.score("m", row(1)))["energy"].tolist() == [1]
            work.set()
            assert await call

    run(test)


def test_a_worker_that_ends_is_replaced_and_its_requests_are_tried_again(monkeypatch):
    """R27: a request that ends two workers is given up; those that shared its call are answered."""

    def fault(x):
        if (x[:, 0] == 13).any():
            raise SystemExit

    async def test():
        async with busy(monkeypatch) as (engine, model, first):
            model.fault = fault
            tasks = [asyncio.create_task(engine.score("m", row(value))) for value in (1, 13, 2)]
            await settled(lambda: engine._waiting.rows == 3)
            model.gate.set()
            found = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert [float(found[i]["energy"][0]) for i in (0, 1, 3)] == [0, 1, 2]
            assert isinstance(found[2], WorkerLost)
            await settled(lambda: engine.state().ready)

    run(test)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_large_request_whose_worker_ends_is_computed_once_more(monkeypatch, processes):
    """R27: its rest is in line, and others may compute parts of it."""

    async def test():
        model, ends = Sums(), [True]

        def fault(x):
            if x[0, 0] == 0 and ends.pop():
                raise SystemExit

        async with running(monkeypatch, {"m": model}, costs={id(model): cost(most=4)}, processes=processes) as engine:
            model.fault = fault
            ends.insert(0, False)
            found = await engine.score("m", row(*range(10)))
            assert found["energy"].tolist() == list(range(10))
            await settled(lambda: not engine.busy)
            assert engine._waiting.rows == 0
            assert not engine._waiting.lanes()

    run(test)


def test_the_state_while_the_worker_is_dead(monkeypatch):
    async def test():
        model = Sums()

        def end(x):
            raise SystemExit

        model.fault = end
        async with running(monkeypatch, {"m": model}) as engine:
            engine._watch.cancel()  # nobody looks
            task = asyncio.create_task(engine.score("m", row(0)))
            await settled(lambda: not engine._workers.alive())
            assert engine.state()[:2] == (False, False)
            model.fault = lambda x: None
            await engine.look()
            assert engine.state()[:2] == (True, True)
            await task

    run(test)


def test_a_worker_that_hangs_is_not_alive(monkeypatch):
    """R27."""

    async def test():
        clock = Clock()
        async with busy(monkeypatch, clock=clock) as (engine, model, task):
            clock.now = STUCK - 1
            assert engine.state().alive
            clock.now = STUCK + 1
            assert engine.state()[:2] == (False, False)
            model.gate.set()
            await task
            assert engine.state()[:2] == (True, True)

    run(test)


def test_a_process_that_hangs_beside_others_is_ended_and_the_service_lives(monkeypatch):
    """R27: alive while another one works; nobody waits for what takes longer than the deadline."""

    class Ended(InThreads):
        interrupted = 0

        def others(self, count):
            return [Ended(self.models) for _ in range(count)]

        def interrupt(self):
            self.interrupted += 1
            self.models["m"].gate.set()
            return True

    async def test():
        clock, model = Clock(), Sums(open=False)
        monkeypatch.setattr("tests.serve.engine_fakes.InThreads", Ended)
        async with running(monkeypatch, {"m": model}, processes=2, clock=clock, deadline=2 * STUCK) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(1)))]
            await model.until_entered()
            (stuck,) = (engine._workers.every[number].scoring for number in engine._waiting.taken)
            clock.now = STUCK + 1
            assert engine.state()[:2] == (True, True)
            tasks.append(asyncio.create_task(engine.score("m", row(2))))
            await model.until_entered()
            await engine.look()
            assert not stuck.interrupted  # somebody may wait for it still
            clock.now = 2 * STUCK + 2
            assert engine.state()[:2] == (False, False)  # both are
            await engine.look()
            assert stuck.interrupted == 1
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(one, Rejected) for one in found] == [True, False]
            await settled(lambda: engine.state()[:2] == (True, True))

    run(test)


def test_before_start_and_while_draining_nothing_is_taken(monkeypatch):
    """R26, R27: what was accepted is answered, what comes is refused."""

    async def test():
        model = Sums(open=False)
        engine = Engine({"m": model}, queue=8, deadline=9.0, metrics=Metrics())
        assert engine.state() == (False, True, "loading")
        with pytest.raises(Rejected) as caught:
            await engine.score("m", row(1))
        assert caught.value.reason == "loading"
        async with running(monkeypatch, {"m": model}) as engine:
            tasks = [asyncio.create_task(engine.score("m", row(value))) for value in range(5)]
            await model.until_entered()
            draining = asyncio.create_task(engine.drain(60))
            await settled(lambda: engine.state().reason == "draining")
            with pytest.raises(Rejected) as caught:
                await engine.score("m", row(9))
            assert caught.value.reason == "draining"
            assert caught.value.retry_after >= 1
            model.gate.set()
            assert len(await asyncio.gather(*tasks)) == 5
            assert await draining
            await settled(lambda: not engine._workers.alive())
            assert engine.state()[:2] == (False, True)  # it has ended as it should

    run(test)


def test_a_drain_that_takes_too_long_gives_up(monkeypatch):
    async def test():
        async with busy(monkeypatch, value=1) as (engine, _, task):
            assert not await engine.drain(0.01)
            with pytest.raises(Rejected) as caught:
                await task
            assert caught.value.reason == "draining"

    run(test)


def test_a_call_that_hung_once_changes_no_estimate():
    """L8: the estimate must not refuse what comes after a stall."""
    of = Cost([1, 8], [0.01, 0.02])
    for _ in range(5):
        of.took(1, 0.01)
    of.took(1, 5.0)
    assert of(1) == pytest.approx(0.01)
    for _ in range(15):
        of.took(8, 0.04)
    assert of(8) == pytest.approx(0.04)
    assert of(16) == pytest.approx(0.08)


def test_the_measured_size_of_a_call():
    """Batching pays for one model and not for the other, by a clock that the model moves."""

    class Timed(Sums):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = a, b

        def seconds(self, call):
            call()
            return self.a + self.b * len(self.calls[-1])

    for a, b, batch in ((0.002, 0.0001, 256), (0.0, 0.002, 1), (0.1, 0.0, 1)):
        model = Timed(a, b)
        found = measure(model, model.seconds)
        assert found(1) == pytest.approx(a + b)
        assert found.batch() == batch


def test_threads_are_those_that_were_asked_for():
    async def test():
        model, seen = Sums(), []
        model.fault = lambda x: seen.append(torch.get_num_threads())
        before = torch.get_num_threads()
        engine = Engine({"m": model}, queue=8, deadline=9.0, metrics=Metrics(), threads=min(2, os.cpu_count() or 1))
        await engine.start()
        await engine.drain(1)
        torch.set_num_threads(before)
        assert set(seen) == {min(2, os.cpu_count() or 1)}

    run(test)


@pytest.mark.parametrize(
    ("cores", "row", "threads", "most", "calls"),
    [
        (2, 0.00007, 1, None, 1),  # the event loop brings no more than one process computes
        (16, 0.00007, 1, None, 1),
        (2, 0.0003, 1, None, 1),  # a second one is worth a fifth of the first
        (2, 0.0005, 1, None, 1),  # one of 42 %, and beside it the p99 of all is higher
        (2, 0.0008, 1, None, 2),
        (2, 0.003, 1, None, 2),
        (16, 0.0008, 1, None, 4),
        (16, 0.02, 1, None, 16),
        (16, 0.02, 4, None, 4),
        (1, 0.02, 1, None, 1),
        (16, 0.02, 1, 5, 5),
        (1, 0.02, 1, 2, 2),
    ],
)
def test_so_many_calls_at_once_leave_no_processor_idle(monkeypatch, cores, row, threads, most, calls):
    monkeypatch.setattr("thalweg.serve.engine.start.cpu_count", lambda: cores)
    assert at_once(Cost([1, 16], [2 * row, 16 * row]), threads, most) == calls
