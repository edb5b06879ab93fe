from .exact import ExactMetrics as ExactMetrics
from .exact import exact_metrics as exact_metrics
