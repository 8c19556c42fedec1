"""Load a trained run and let it continue two prompts together, each as it comes.

python examples/generate_text.py runs/hyena-20260101-120000 "import os" "def main("
"""

import sys
from pathlib import Path

from longreach.inference import GenerationOptions, generate, load_trained

run, *prompts = sys.argv[1:]
trained = load_trained(Path(run))
options = GenerationOptions(max_new_tokens=100, temperature=0.8, top_p=0.95, stop=["\n\n\n"])
for piece in generate(trained.model, trained.tokenizer, prompts or [""], options):
    print(f"{piece.prompt}: {piece.text!r}" + (f" (the end: {piece.end})" if piece.end else ""))
