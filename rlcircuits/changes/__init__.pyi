from .divergences import DIVERGENCE as DIVERGENCE
from .divergences import Divergence as Divergence
from .divergences import divergence as divergence
from .grafting import GRAFTS as GRAFTS
from .grafting import Graft as Graft
from .grafting import graft as graft
from .sides import both as both
