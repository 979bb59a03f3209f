"""The zoo: the embedded default, small real checkpoints built from what every Python carries.

One base Llama and three experts fine-tuned from it (code, prose, math), with lm-eval tasks on
documents that none of them saw. Built once, cached, the same for the same Python and torch.

- :mod:`evomerge.zoo.build`: `build_zoo`, the cache, the lock
- :mod:`evomerge.zoo.sizes`: `SIZES`, the settings of each size
- :mod:`evomerge.zoo.corpus`: code and prose of the standard library, held out by module
- :mod:`evomerge.zoo.arithmetic`: arithmetic documents, held out by problem
- :mod:`evomerge.zoo.tasks`: the lm-eval YAMLs and their json
- :mod:`evomerge.zoo.train`: tokenizer, model, training loop
- :mod:`evomerge.zoo.score`: bits per byte, for the manifest
- :mod:`evomerge.zoo.progress`: the bar on stderr

Importing this package imports neither torch nor transformers.
"""

from evomerge.zoo.build import MODELS, build_zoo, default_folder
from evomerge.zoo.sizes import DOMAINS, SIZES, Size
from evomerge.zoo.tasks import TASKS

__all__ = ["DOMAINS", "MODELS", "SIZES", "TASKS", "Size", "build_zoo", "default_folder"]
