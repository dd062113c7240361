"""Jobs write files; this one step imports them into MLflow, so that no two jobs ever wait for its database."""


localrules:
    track,


rule track:
    input:
        REPORT,
        [TRAINED.format(run=run.id) for run in plan.runs],
        summaries(),
    output:
        touch(TRACKED),
    log:
        f"{LOGS}/track.log",
    benchmark:
        f"{TIMES}/track.tsv"
    resources:
        **asks(always(2000, 30)),
    params:
        plan=PLAN,
        code=source_hash("tracking"),
        server=os.environ.get("MLFLOW_TRACKING_URI", ""),
    message:
        "Import into MLflow"
    shell:
        "restool track --plan {params.plan} > {log} 2>&1"
