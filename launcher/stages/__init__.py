"""The stages of a command: train in float, calibrate, QAT, its control, evaluate, export."""

from dq.detector.engines.measurement import Keep as Keep
from launcher.plan import Plan as Plan
from launcher.plan import asked_to_resume as asked_to_resume
from launcher.plan import begin_plan as begin_plan
from launcher.plan import read_plan as read_plan
from launcher.plan import starting_point as starting_point
from launcher.plan import with_target as with_target
from launcher.stage.stage import check_start as check_start
from launcher.stages.analysis import analyzed as analyzed
from launcher.stages.calibration import calibrated as calibrated
from launcher.stages.control import train_control as train_control
from launcher.stages.evaluation import evaluated as evaluated
from launcher.stages.evaluation import formatted as formatted
from launcher.stages.float_training import train_float as train_float
from launcher.stages.quantized_training import train_quantized as train_quantized
from launcher.stages.recipe_search import Limits as Limits
from launcher.stages.recipe_search import searched as searched
from launcher.stages.unlabelled import with_images as with_images
