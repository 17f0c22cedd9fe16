"""The paper's generate.py: words sampled from a run, 20 a line. The same as ``highrank generate``.

--checkpoint takes what dynamiceval.py's --model takes. Here, as in the original, --cuda does switch the GPU on.
"""

from pathlib import Path

from options import find_model, generate_parser, run_script

from highrank.data.vocabulary import END_OF_LINE
from highrank.evaluate import Sampling, generate
from highrank.runs import choose_device

WORDS_A_LINE = 20


def main() -> int:
    arguments = generate_parser().parse_args()

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
