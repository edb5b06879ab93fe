from .deformations import DEFORMATIONS as DEFORMATIONS
from .deformations import responses as responses
