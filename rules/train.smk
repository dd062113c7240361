"""SFT and RL.

Only done.json is declared: Snakemake deletes declared outputs before it reruns a job, and checkpoints must outlive
a job that was killed, so that the rerun goes on where it stopped.
"""


rule train:
    input:  # without names: Snakemake keeps one more list for each, in every job of thousands
        data_of,
        model_of,
        trained_in,
    output:
        TRAINED,
    log:
        f"{LOGS}/train/{{run}}.log",
    benchmark:
        f"{TIMES}/train/{{run}}.tsv"
    priority: 50
    threads: threads(training)
    resources:
        **asks(training),
    params:
        plan=PLAN,
        config_hash=training_hash,
    message:
        "Train {wildcards.run}"
    shell:
        "restool train --plan {params.plan} --run {wildcards.run} --replace > {log} 2>&1"
