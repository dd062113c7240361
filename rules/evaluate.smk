"""Held-out tasks, API-Bank and BFCL. Answers and items are undeclared, so that a killed evaluation resumes."""


rule evaluate_model:
    message:
        "Evaluate {wildcards.run} on {wildcards.benchmark}"
    params:
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    input:
        trained=TRAINED,
        data=lambda wildcards: prepared_of(wildcards.run),
    output:
        SUMMARY,
    wildcard_constraints:
        benchmark="held-out|api-bank",
    log:
        f"{LOGS}/evaluate/{{run}}.{{benchmark}}.log",
    benchmark:
        f"{TIMES}/evaluate/{{run}}.{{benchmark}}.tsv"
    resources:
        mem_mb=memory(lambda run: run.resources["mem_mb"]),
        runtime=minutes(240),
        gpu=lambda wildcards: min(gpus(wildcards), 1),
        gpu_model=gpu_model,
        slurm_partition=partition,
        slurm_account=account,
    shell:
        "{restool} evaluate {wildcards.benchmark} --plan {plan.path} --run {wildcards.run} > {log} 2>&1"


rule evaluate_bfcl:
    message:
        "Evaluate {wildcards.run} on BFCL"
    params:
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    input:
        trained=TRAINED,
        data=lambda wildcards: prepared_of(wildcards.run),
        checker=ancient(environment_of("bfcl")),
    output:
        SUMMARY.replace("{benchmark}", "bfcl"),
    log:
        f"{LOGS}/evaluate/{{run}}.bfcl.log",
    benchmark:
        f"{TIMES}/evaluate/{{run}}.bfcl.tsv"
    resources:
        mem_mb=memory(lambda run: run.resources["mem_mb"]),
        runtime=minutes(480),
        gpu=lambda wildcards: min(gpus(wildcards), 1),
        gpu_model=gpu_model,
        slurm_partition=partition,
        slurm_account=account,
    shell:
        "{restool} evaluate bfcl --plan {plan.path} --run {wildcards.run} > {log} 2>&1"


rule evaluate_bfcl_synthetic:
    message:
        "Score the held-out answers of {wildcards.run} with BFCL's checker"
    params:
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    input:
        answers=SUMMARY.replace("{benchmark}", "held-out"),
        data=lambda wildcards: prepared_of(wildcards.run),
        checker=ancient(environment_of("bfcl")),
    output:
        SUMMARY.replace("{benchmark}", "bfcl-synthetic"),
    log:
        f"{LOGS}/evaluate/{{run}}.bfcl-synthetic.log",
    benchmark:
        f"{TIMES}/evaluate/{{run}}.bfcl-synthetic.tsv"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(60),
        slurm_partition=partition,
        slurm_account=account,
    shell:
        "{restool} evaluate bfcl-synthetic --plan {plan.path} --run {wildcards.run} > {log} 2>&1"
