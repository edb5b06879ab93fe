from .family import checkpoints as checkpoints
from .family import family_pairs as family_pairs
from .family import family_problems as family_problems
from .family import load_curves as load_curves
from .family import make_families as make_families
from .family import make_family as make_family
from .paper import papers_table as papers_table
