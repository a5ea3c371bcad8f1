"""The exit code that has a meaning of its own, for those who set it and those who read it."""

# A signal stopped the job, and ``--resume`` continues it. EX_TEMPFAIL of sysexits.h: a temporary
# condition, try again later.
STOPPED_CODE = 75
