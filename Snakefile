"""From tool-use data to a report.

    snakemake --cores all                                       the default experiment, `quick`
    snakemake --cores all --config experiment=paper -n          what another experiment would do
    snakemake --cores all --profile slurm                       the same on a Slurm cluster

The runs of an experiment are composed once per change of configs/ (see `restool plan EXPERIMENT`); the rules only
say what depends on what, and every one of them calls one verb of `restool`.
"""

from snakemake.utils import min_version

min_version("9.27")


include: "workflow/plan.smk"
include: "rules/environments.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/analyze.smk"
include: "rules/report.smk"
include: "rules/track.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        REPORT,
        TRACKED,
        finished(),  # a result that somebody deleted is made again, although everything behind it is there
    message:
        "{plan.name}: the report is {REPORT}"


onsuccess:
    print(closing_lines())
