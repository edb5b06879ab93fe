from .divergences import Divergence as Divergence
from .divergences import divergence as divergence
from .sides import both as both
