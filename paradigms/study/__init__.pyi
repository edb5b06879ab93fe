from .controlled import SECOND_SEEDS as SECOND_SEEDS
from .controlled import SEEDS as SEEDS
from .controlled import load as load
from .controlled import run as run
