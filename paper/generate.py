"""The paper's generate.py: words sampled from a run, 20 a line. The same as ``highrank generate``.

--checkpoint takes what dynamiceval.py's --model takes. Here, as in the original, --cuda does switch the GPU on.
"""

import argparse
from pathlib import Path

from options import find_model, run_script

from highrank.data.vocabulary import END_OF_LINE
from highrank.evaluate import Sampling, generate
from highrank.runs import choose_device

WORDS_A_LINE = 20


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate text with a run.")
    parser.add_argument("--data", default="./penn", help="no effect: the run has its vocabulary")
    parser.add_argument(
        "--checkpoint", default="./model.pt", help="FOLDER/finetune_model.pt, FOLDER/model.pt or FOLDER"
    )
    parser.add_argument("--outf", default="generated.txt", help="the file to write (default: %(default)s)")
    parser.add_argument("--words", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1111, help="the same seed gives the same text")
    parser.add_argument("--cuda", action="store_true", help="use a GPU")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the mixture")
    parser.add_argument("--log-interval", type=int, default=100, help="no effect")
    arguments = parser.parse_args()

    run, stage = find_model(arguments.checkpoint)
    model = run.load_model(stage, device=choose_device("cuda" if arguments.cuda else "cpu"))
    vocabulary = run.vocabulary
    start = vocabulary.encode([END_OF_LINE])
    sampling = Sampling(temperature=arguments.temperature)
    words = vocabulary.decode(generate(model, start, arguments.words, sampling=sampling, seed=arguments.seed))
    lines = [" ".join(words[begin : begin + WORDS_A_LINE]) for begin in range(0, len(words), WORDS_A_LINE)]
    Path(arguments.outf).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(words)} words in {arguments.outf}")
    return 0


if __name__ == "__main__":
    run_script(main)
