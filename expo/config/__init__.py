"""Config: every key of expo, declared once, checked before anything is loaded. Imports nothing heavy."""

from expo.config.algorithm import AlgorithmConf, DPOConf, GRPOConf, PositivesOnlyConf, SFTConf
from expo.config.arguments import take_options
from expo.config.commands import DiagnoseConf, JudgeConf, PretrainConf
from expo.config.compose import build, check, check_anywhere, compose_config, conf_dir, config_folders, register, typed
from expo.config.dataset import ColumnsConf, DatasetConf, FunctionConf, Gsm8kConf, LadderConf, MathConf, TableConf
from expo.config.distillation import SelfDistillationConf
from expo.config.errors import DISK, EngineError, UserError
from expo.config.from_run import restore
from expo.config.hints import HintsConf, NoHintsConf, PrefixConf, SelfHintConf
from expo.config.identity import arm_identity, data_content, identity, lineage, model_content, pairs_identity
from expo.config.key import Rules, functions_of, key, option
from expo.config.loggers import (
    CsvLoggerConf,
    LoggerConf,
    MlflowConf,
    MlflowLoggerConf,
    TensorBoardLoggerConf,
    WandbConf,
    WandbLoggerConf,
)
from expo.config.model import LADDER, ModelConf, RandomShapeConf, RandomTinyConf
from expo.config.optimizer import AdamW8bitConf, OptimizerConf
from expo.config.places import label, make_folder, run_dir, run_id, run_mark
from expo.config.positives import (
    ExpertConf,
    NoPositivesConf,
    ParaphraseConf,
    PositiveLossConf,
    PositivesConf,
    SelfExplanationConf,
    SourceConf,
    StarConf,
)
from expo.config.prompts import PromptsConf
from expo.config.reasoning import ReasoningGymConf
from expo.config.rollout import RolloutConf, VLLMConf
from expo.config.run import Config
from expo.config.training import ANSWER_KINDS, PartialConf, PythonVerifierConf, RewardConf, TrainerConf, VerifierConf
from expo.config.world import WorldConf
