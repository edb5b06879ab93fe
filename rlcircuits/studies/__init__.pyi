from .pipeline import PairStudy as PairStudy
from .pipeline import Study as Study
from .pipeline import first_prompts as first_prompts
from .pipeline import generate_pair as generate_pair
from .pipeline import study as study
from .reporting import report_of_nothing as report_of_nothing
from .steps import keep_models as keep_models
