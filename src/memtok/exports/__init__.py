"""Models as files that run without memtok's code: `memtok.export` writes them, `memtok.load_onnx` answers with them.

Read `writing` first (the whole way), then `program` (what is computed), `graph` (the ONNX file), `weights` (float16 and
int8), `parity` (compared with PyTorch), `progress` (what is shown meanwhile); `description` is what a file says of
itself, `opened` reads it without torch.
"""
