"""The model family: one supervised base and its descendants, trained on the spot on short word problems.

1. `task`: the problems, their tokenizer and grader. 2. `recipe`: every hyper-parameter. 3. `sft`, `rft`, `grpo`, `dpo`
(TRL), `ppo` and `online_dpo` (ours) each turn one checkpoint into another. 4. `curves` measures a policy while it
trains.
5. `member` trains one member, `train` all of them through the store.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
