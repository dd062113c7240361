"""Results into MLflow: one parent run an experiment, one child a run. The only package that imports mlflow.

Importing is idempotent. A run is known by its key and its identity (settings, what it was made from, when it finished);
every part of it that was imported (metrics, each evaluation, artifacts) leaves its content hash in a tag. A second
import adds nothing; a part that came later is added; a run that was made anew replaces its old self, which goes to
MLflow's deleted runs (and comes back from there if the old result does): each names the other in a tag, and the new
one says so in its description. Metric points carry the timestamps of metrics.jsonl, so repeating an import that was cut
off logs no point twice. Every import also saves the experiment's comparison as a view of MLflow's pages.
"""

from restool.tracking.importing import track
from restool.tracking.serving import show
from restool.tracking.store import Imported

__all__ = ["Imported", "show", "track"]
