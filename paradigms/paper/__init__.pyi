from .table import cells_run as cells_run
from .table import directions as directions
from .table import papers_table as papers_table
from .table import published as published
