"""Work that is more than one command line."""

from robustguide.plans.display import JobDisplay
from robustguide.plans.jobs import Job, JobError, run_jobs

__all__ = ["Job", "JobDisplay", "JobError", "run_jobs"]
