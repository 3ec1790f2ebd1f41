"""HyperCLIP against pooling that each name chooses (Llip), on drawings of an artist never trained on.

The rival starts from the twin, has as many further steps on the same batches as every arm of the sweep, nothing frozen, and is
trained by SigLIP over all pairs of a batch.  It lets every name look at the picture for itself, and pays for it where the
encoder runs: its pooling is run once for each picture and name, and no plain encoder can be folded out of it.  What that costs
is counted and timed beside the plain encoder, for 10 and for 50 names.

    python -m tests.benchmarks.rivals --pictures FOLDER       the figures that count
    python -m tests.benchmarks.rivals                         a smoke run on the bundled sample
"""

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.sweep import Contender
from tests.benchmarks._gain import HYPERCLIP, MATCHED, TWIN, table
from tests.benchmarks._on_device import num_flops, num_parameters, passes
from tests.benchmarks._rival_training import SET, Course, compared_with_rivals, judged, ratio_of, rival_measures
from tests.benchmarks._sweep_of_results import Part, results_of, sweep_arguments
from tests.benchmarks._text_pooling import HEADS, WIDTH, PoolingClassifier, TextPooling
from tests.benchmarks.encoder_cost import latency_ratio, make_side
from tests.result import benchmark_result, environment, interleaved, measure
from training.bundle import Bundle
from training.initial import start_from
from training.model.hyperclip import HyperClip
from training.specialize import encode_labels

NAME = "rivals"
LLIP, POOLED = "llip", "pooled"
SPECIALIZED, PLAIN, RIVAL = Contender(HYPERCLIP, "specialized"), Contender(MATCHED, "neutral"), Contender(LLIP, POOLED)
PAIRS = [(SPECIALIZED, RIVAL), (RIVAL, PLAIN), (SPECIALIZED, PLAIN), (RIVAL, Contender(TWIN, "neutral"))]
NUMS_NAMES = (10, 50)


def pooling_from(twin: Bundle) -> TextPooling:
    """The rival before its first step: the twin's weights, and a pooling that adds nothing yet."""
    model = HyperClip(twin.model.config)
    start_from(model, twin, uri=f"twin {twin.digest[:12]}")
    return TextPooling(model)


def cost_measures(twin: Bundle, *, rounds: int) -> dict[str, dict[str, Any]]:
    """What one picture costs with the pooling, beside the plain encoder; weights change nothing of it."""
    rival, side = pooling_from(twin).eval(), twin.preprocess.image_size
    _, tokens = rival.see(rival.pooling.norm.weight.new_zeros(1, 3, side, side))
    found = {
        "parameters_trained_besides": measure(num_parameters(rival) - num_parameters(rival.model)),
        "numbers_kept_of_a_picture": measure(tokens[0].numel() + twin.model.config.image.embed_dim),
        "tokens_of_a_picture": measure(tokens.shape[1]),
    }
    with tempfile.TemporaryDirectory(prefix="hyperclip-rivals-") as temporary:
        folder, files, flops = Path(temporary), {}, {}
        for count in NUMS_NAMES:
            labels = [f"thing {number}" for number in range(count)]
            plain = make_side(twin, labels, folder / f"plain-{count}")
            pooling = PoolingClassifier(rival, encode_labels(twin, labels, twin.templates))
            files[f"plain_{count}"] = plain.file
            files[f"pooling_{count}"] = pooling.to_onnx(folder / f"pooling-{count}.onnx", side=side)
            flops |= {"plain": plain.flops, f"pooling_{count}": num_flops(pooling, side)}
            found["parameters_plain"] = measure(plain.parameters)
            found["parameters_with_pooling"] = measure(pooling.num_parameters)
        times = interleaved({name: passes(file, side) for name, file in files.items()}, rounds=rounds)
    found |= {f"flops_{name}": measure(count) for name, count in flops.items()}
    for count in NUMS_NAMES:
        ratios = latency_ratio(times, f"pooling_{count}", f"plain_{count}")
        found[f"latency_over_plain_{count}_names"] = measure(statistics.median(ratios))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep_arguments(parser)
    results = results_of(parser.parse_args(), part=Part(NAME, (HYPERCLIP, MATCHED), SET))
    twins = results.bundles(TWIN)
    trained = [
        judged(
            LLIP,
            POOLED,
            partial(pooling_from, twin),
            Course.of(results, [run], twin),
            start={"twin": twin.digest, "width": WIDTH, "heads": HEADS},
        )
        for twin, run in zip(twins, results.runs(MATCHED), strict=True)
    ]
    comparison = compared_with_rivals(results, {LLIP: trained}, PAIRS)
    measures = rival_measures(comparison, PAIRS)
    measures["step_seconds_llip"] = measure(statistics.fmean(one.step_seconds for one in trained), unit="s")
    measures |= cost_measures(twins[0], rounds=5 if results.smoke else 15)
    print(f"\n{NAME} ({results.verdict}), {len(trained)} seeds, 95 % intervals over seeds and tasks")
    print("\n".join(table(measures)), flush=True)
    return benchmark_result(
        NAME,
        ratio=ratio_of(comparison, SPECIALIZED, RIVAL),
        goal=None,  # for information: nothing was promised of it
        measures=measures,
        note="flops are two for a multiply-add, of one picture; the queries of the names are made once and not counted",
        **results.details,
        **environment("torch", "timm", "onnxruntime"),
    )


if __name__ == "__main__":
    sys.exit(main())
