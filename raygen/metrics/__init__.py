"""What generated clips are worth, beside real ones: class, distance, motion, variety, copies.

    evaluation = judge(real, labels, videos, fake, fake_labels, classes, config.evaluate, seed=0)
    run.write_json("evaluation.json", evaluation.as_dict())

Pure numpy and torch; no Ray. Clips are uint8 [N,T,H,W,3], decoded or generated, never re-encoded.
"""

from raygen.metrics.evaluation import Evaluation
from raygen.metrics.judge import Judge, Judgement, judge

__all__ = ["Evaluation", "Judge", "Judgement", "judge"]
