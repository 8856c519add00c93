"""The OpenAPI description of a service: exact requests and answers of the models that it serves."""
