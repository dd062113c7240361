"""Fetch or generate the data, verify it, split it, and write it as parquet with a manifest.

Runs where Snakemake runs: compute nodes often cannot reach the network.
"""


localrules:
    prepare,


rule prepare:
    output:
        PREPARED,
    log:
        f"{LOGS}/prepare/{{prepared}}.log",
    benchmark:
        f"{TIMES}/prepare/{{prepared}}.tsv"
    priority: 100
    resources:
        **asks(always(3000, 60)),
    params:
        plan=PLAN,
    message:
        "Data {wildcards.prepared}"
    shell:
        "restool prepare --plan {params.plan} --prepared {wildcards.prepared} > {log} 2>&1"
