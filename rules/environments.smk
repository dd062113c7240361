"""Tools that cannot share an environment with the rest get one of their own, built from envs/."""


localrules:
    environment,


rule environment:
    output:
        ENVIRONMENT,
    log:
        f"{LOGS}/environment/{{name}}-{{version}}.log",
    benchmark:
        f"{TIMES}/environment/{{name}}-{{version}}.tsv"
    priority: 60
    message:
        "Tool environment {wildcards.name}"
    shell:
        "restool env build {wildcards.name} > {log} 2>&1"
