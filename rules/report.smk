"""One self-contained HTML page."""


localrules:
    report,


rule report:
    message:
        "Report"
    params:
        code=source_hash("analysis"),
    input:
        ANALYZED,
    output:
        REPORT,
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{TIMES}/report.tsv"
    resources:
        mem_mb=memory(2000),
    shell:
        "{restool} report --plan {plan.path} > {log} 2>&1"
