"""Options of a run: `Settings`, their parsing, and the values that they accept."""

from .fields import (
    ANATOMY_CHANGE_MAPS,
    CARD_SUFFIX,
    DETAIL,
    EXPORT_NAMES,
    EXPORTS,
    LEVEL_STAGES,
    LEVELS,
    MODALITIES,
    PRECISION,
    PRESETS,
    SCANNER_FREE,
    SITE_SOURCES,
    SKULL_STRIP,
    STAGES,
    TEXTURE,
    TRAVELING,
    available_cpus,
    parse_memory,
)
from .model import ONE_TIME_OPTIONS, Settings, load_toml, named_value
