from .exact import ExactMetrics as ExactMetrics
from .exact import exact_metrics as exact_metrics
from .judging import QUANTITIES as QUANTITIES
from .judging import TRUST as TRUST
from .judging import Trust as Trust
from .judging import stability as stability
from .judging import trust as trust
from .words import sentences as sentences
