"""Read a long sequence at once, in chunks and one position at a time, and see that the answer is the same.

python examples/streaming.py
"""

import time

import torch

from longreach.mixers import S4D, Attention, Hyena, map_state

LENGTH, CHUNK, WIDTH = 1024, 200, 32

torch.manual_seed(0)
x = torch.randn(1, LENGTH, WIDTH)
print(f"{'mixer':10} {'at once':>9} {'in chunks':>10} {'one by one':>11} {'state':>12}   largest difference")
for mixer in (Attention(WIDTH), S4D(WIDTH), Hyena(WIDTH, max_length=LENGTH)):
    mixer.eval()
    with torch.inference_mode():
        began = time.perf_counter()
        at_once = mixer(x)
        read_at_once = time.perf_counter()
        state, chunks = mixer.init_state(1), []
        for chunk in x.split(CHUNK, dim=1):
            y, state = mixer.prefill(chunk, state)
            chunks.append(y)
        read_chunks = time.perf_counter()
        state, steps = mixer.init_state(1), []
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, state)
            steps.append(y)
        read_steps = time.perf_counter()
    size: list[int] = []
    map_state(lambda leaf, size=size: size.append(leaf.nbytes) or leaf, state)
    difference = max((torch.cat(chunks, 1) - at_once).abs().max(), (torch.stack(steps, 1) - at_once).abs().max())
    times = f"{read_at_once - began:8.3f}s {read_chunks - read_at_once:9.3f}s {read_steps - read_chunks:10.3f}s"
    print(f"{type(mixer).__name__:10} {times} {sum(size):8,d} byte   {difference:.1e}")
