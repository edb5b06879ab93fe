from .deformations import DEFORMATIONS as DEFORMATIONS
from .deformations import responses as responses
from .removal import removal_html as removal_html
from .removal import removal_losses as removal_losses
