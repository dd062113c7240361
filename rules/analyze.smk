"""Gradient variance at the checkpoint that RL starts from; then tables and figures from the run directories."""


rule variance:
    input:
        variance_needs(),
    output:
        VARIANCE,
    log:
        f"{LOGS}/variance.log",
    benchmark:
        f"{TIMES}/variance.tsv"
    priority: 20
    threads: threads(measuring)
    resources:
        **asks(measuring),
    params:
        plan=PLAN,
        settings=plan.variance,
        subject=plan.variance_subject and plan.variance_subject.config_hash,
    message:
        "Gradient variance by weighting"
    shell:
        "restool analyze variance --plan {params.plan} > {log} 2>&1"


rule analyze:
    input:
        trained=[TRAINED.format(run=run.id) for run in plan.runs],
        summaries=summaries(),
        variance=VARIANCE if plan.variance_subject else [],
    output:
        stamp=touch(ANALYZED),
        figures=report(
            directory(f"{ANALYSIS}/figures"),
            patterns=["{figure}.png"],
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{LOGS}/analyze.log",
    benchmark:
        f"{TIMES}/analyze.tsv"
    resources:
        **asks(always(4000, 60)),
    params:
        plan=PLAN,
        code=source_hash("analysis"),
        captions=captions(),
        experiment=plan.experiment.model_dump(mode="json"),
    message:
        "Tables and figures"
    shell:
        "restool analyze --plan {params.plan} > {log} 2>&1"
