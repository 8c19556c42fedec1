"""Read a document of a million bytes in one pass, and plot what its bytes cost from the first to the last.

python examples/whole_book.py                                       trains a small model for a minute first
python examples/whole_book.py --run runs/s4d-20260101-120000        takes that of a run

The document is the held-out files of the corpus, one after the other.  The model is an S4D, whose memory does not grow
with what it reads; it learns with its state carried over 4,096 bytes while gradients reach over 1,024.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from longreach.inference import document_losses, load_trained
from longreach.inference.compression import gzip_size, xz_size
from longreach.mixers import S4D
from longreach.models import MLP, Backbone, LanguageModel
from longreach.tasks import Corpus
from longreach.tasks.corpora import Split
from longreach.training import TrainingOptions
from longreach.training.optimiser import make_optimiser, set_lr_factor
from longreach.training.plots import BLUE, GREY, plot_axes

BLOCKS = 100
LOG_2 = math.log(2)


def new_model(vocab_size: int) -> LanguageModel:
    """Four layers of width 128."""
    return LanguageModel(vocab_size, Backbone(128, n_layers=4, mixers=[S4D], channel_mixer=MLP))


def train_for(minutes: float, corpus: Corpus) -> LanguageModel:
    """A model that has seen as much of the corpus as there was time for, its learning rate falling to zero."""
    torch.manual_seed(0)
    model = corpus.build(new_model)
    assert isinstance(model, LanguageModel)
    optimiser = make_optimiser(model, TrainingOptions(minutes=minutes, lr=5e-3))
    began, step, n_bytes, bits = time.perf_counter(), 0, 0, 0.0
    while step == 0 or time.perf_counter() - began < 60 * minutes:
        set_lr_factor(optimiser, max(0.0, 1 - (time.perf_counter() - began) / (60 * minutes)))
        batch, state, total = corpus.batch(step, 0, 1), None, 0.0
        for piece in corpus.pieces(batch):
            loss, state = corpus.loss_after(model, piece, state)
            (loss / batch.weight).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step, n_bytes, bits = step + 1, n_bytes + batch.weight, total / batch.weight / LOG_2
    print(f"trained for {step:,} steps on {n_bytes:,} bytes, the last at {bits:.3f} bits per byte")
    return model


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, help="the folder of a trained run, instead of training")
parser.add_argument("--data", default="stdlib", help="what is trained on where no run is given")
parser.add_argument("--minutes", type=float, default=1.0, help="how long")
parser.add_argument("--context", type=int, default=4096, help="bytes over which the state is carried in training")
parser.add_argument("--bytes", type=int, default=1_000_000, help="length of the document")
parser.add_argument("--out", type=Path, default=Path("whole_book.png"))
options = parser.parse_args()

if options.run:
    trained = load_trained(options.run)
    model, corpus = trained.model, trained.corpus
    corpus.prepare()
else:
    corpus = Corpus(
        options.data,
        context=options.context,
        batch_size=1,
        split=Split(validation=0.01, test=0.12),  # of the standard library, 12% are more than a million bytes
        truncation=min(1024, options.context),
    )
    corpus.prepare()
    model = train_for(options.minutes, corpus)

document = b"\n".join(document.content for document in corpus.held_out())[: options.bytes]
tokens = corpus.tokenizer.encode(document)
began = time.perf_counter()
bits = document_losses(model, tokens, corpus.tokenizer.separator)[:-1].double() / LOG_2
seconds = time.perf_counter() - began
print(f"read {len(document):,} bytes in {seconds:.1f} s: {bits.sum() / len(document):.3f} bits per byte")
for name, size in (("gzip -9", gzip_size(document)), ("xz -9e", xz_size(document))):
    print(f"{name}: {8 * size / len(document):.3f} bits per byte")

ends = torch.from_numpy(corpus.tokenizer.n_bytes[tokens]).cumsum(0)  # where each token ends, in bytes
edges = torch.linspace(0, len(document), BLOCKS + 1)
block = torch.bucketize(ends.double() - 0.5, edges[1:-1].double())
cost = torch.zeros(BLOCKS, dtype=torch.float64).index_add(0, block, bits) / (len(document) / BLOCKS)
running = bits.cumsum(0) / ends
with plot_axes(options.out, x_label="position in the document (bytes)", y_label="bits per byte") as axes:
    axes.step(
        edges[:-1], cost, where="post", color=BLUE, linewidth=1.2, label=f"each {len(document) // BLOCKS:,} bytes"
    )
    axes.plot(ends[len(ends) // BLOCKS :], running[len(ends) // BLOCKS :], color=GREY, label="all bytes up to here")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.legend(frameon=False)
print(f"plot: {options.out}")
