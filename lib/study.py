"""A `Study` asks a question of a network at initialisation; its `Answer` is a line of `outputs/<profile>/audit.jsonl`."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from lib import methods
from lib.experiment import SCORE_IMAGES, VERSION, Cell

Rows = list[dict]


@dataclass(frozen=True)
class Study:
    """A question to a network at initialisation; its fields make the key."""

    question: str              # a key of audit.QUESTIONS
    dataset: str
    model: str
    method: str                # "": the question is of all methods, or of none
    seed: int
    width: float = 1.0
    score_images: int = SCORE_IMAGES
    train_images: int | None = None

    @property
    def key(self) -> str:
        """Sixteen hex digits of a hash of the fields and the version."""
        text = json.dumps([VERSION, "study", asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def task(self) -> tuple:
        """Studies of one method on one network are answered by one worker, because they share its score or curvature."""
        return (self.dataset, self.model, self.seed, self.method.split("@")[0] or self.question)

    def __str__(self) -> str:
        return " ".join(filter(None, (f"{self.dataset}/{self.model}", self.question, self.method, f"seed {self.seed}")))

    def cell(self, method: str | None = None, ratio: float = 1.0, **changed) -> Cell:
        """The cell whose network, scoring batch and mask are looked at; nothing is trained."""
        method = self.method if method is None else method
        images = self.score_images if methods.get(method).base == "OBD" else SCORE_IMAGES
        fields = {"seed": self.seed, "score_images": images} | changed
        return Cell(self.dataset, self.model, method, ratio, epochs=0, learning_rate=1e-3, width=self.width,
                    train_images=self.train_images, **fields)


@dataclass
class Answer:
    """A line of `audit.jsonl`: the rows of a small table, numbers and names only."""

    key: str
    version: int
    study: Study
    rows: Rows
    run: dict = field(default_factory=dict)

    @property
    def made_of(self) -> Study:
        """What has the answer's key."""
        return self.study

    def to_json(self) -> str:
        """One line of JSON, without the line's end. Raises ValueError for a number that is not finite."""
        return json.dumps(vars(self) | {"study": vars(self.study)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Answer":
        """The answer of such a line; raises ValueError, KeyError or TypeError for anything else."""
        values = json.loads(line)
        return cls(**{**values, "study": Study(**values["study"])})

    def summary(self) -> str:
        return f"{len(self.rows)} rows in {self.run['seconds']:.0f} s"
