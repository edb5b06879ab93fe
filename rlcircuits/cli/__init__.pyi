from .options import StoreFolder as StoreFolder
from .options import one_of as one_of
from .options import option as option
from .options import output as output
from .options import seed as seed
from .options import some as some
from .options import whole as whole
