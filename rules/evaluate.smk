"""Held-out tasks, API-Bank and BFCL. Answers and items are undeclared, so that a killed evaluation resumes."""


rule evaluate_model:
    input:
        trained=TRAINED,
        data=lambda wildcards: prepared_of(wildcards.run),
    output:
        SUMMARY,
    log:
        f"{LOGS}/evaluate/{{run}}.{{benchmark}}.log",
    benchmark:
        f"{TIMES}/evaluate/{{run}}.{{benchmark}}.tsv"
    wildcard_constraints:
        benchmark="held-out|api-bank",
    resources:
        mem_mb=memory(lambda run: run.resources["mem_mb"]),
        runtime=minutes(240),
        gpu=one_gpu,
        gpu_model=gpu_model(one_gpu),
        slurm_partition=partition(one_gpu),
        slurm_account=account,
    params:
        plan=PLAN,
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    message:
        "Evaluate {wildcards.run} on {wildcards.benchmark}"
    shell:
        "restool evaluate {wildcards.benchmark} --plan {params.plan} --run {wildcards.run} > {log} 2>&1"


rule evaluate_bfcl:
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
        gpu=one_gpu,
        gpu_model=gpu_model(one_gpu),
        slurm_partition=partition(one_gpu),
        slurm_account=account,
    params:
        plan=PLAN,
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    message:
        "Evaluate {wildcards.run} on BFCL"
    shell:
        "restool evaluate bfcl --plan {params.plan} --run {wildcards.run} > {log} 2>&1"


rule evaluate_bfcl_synthetic:
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
        slurm_partition=site.partition or "",
        slurm_account=account,
    params:
        plan=PLAN,
        settings=lambda wildcards: evaluation_hash(wildcards.run),
    message:
        "Score the held-out answers of {wildcards.run} with BFCL's checker"
    shell:
        "restool evaluate bfcl-synthetic --plan {params.plan} --run {wildcards.run} > {log} 2>&1"
