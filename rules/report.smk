"""One self-contained HTML page."""


localrules:
    report,


rule report:
    input:
        ANALYZED,
    output:
        report(REPORT, caption="../workflow/report/report.rst", category="Report"),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{TIMES}/report.tsv"
    resources:
        **asks(always(2000, 30)),
    params:
        plan=PLAN,
        code=source_hash("analysis"),
    message:
        "Report"
    shell:
        "restool report --plan {params.plan} > {log} 2>&1"
