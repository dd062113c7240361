"""Every benchmark of configs/benchmark. Answers and items are undeclared, so that a killed evaluation resumes."""


rule evaluate:
    input:  # without names, as in train
        TRAINED,
        data_of,
        answers_of,
        ancient(checker_of),
    output:
        SUMMARY,
    log:
        f"{LOGS}/evaluate/{{run}}.{{benchmark}}.log",
    benchmark:
        f"{TIMES}/evaluate/{{run}}.{{benchmark}}.tsv"
    threads: threads(evaluating)
    resources:
        **asks(evaluating),
    params:
        plan=PLAN,
        settings=evaluation_hash,
        definition=definition_hash,
    message:
        "Evaluate {wildcards.run} on {wildcards.benchmark}"
    shell:
        "restool evaluate {wildcards.benchmark} --plan {params.plan} --run {wildcards.run} > {log} 2>&1"
