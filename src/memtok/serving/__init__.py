"""The server of `memtok serve`: many tasks of many tenants over HTTP, answered by one model in batches.

Read `application` first (how the parts are put together), then `batching` (how requests share a pass), `catalogue`
(how the tasks change while requests are answered) and `keys` (who may see what). `models` says what a model that is
served can do, `torch_model` and `onnx_model` are the two kinds; `v1`, `open_inference` and `website` are the routes.
"""
