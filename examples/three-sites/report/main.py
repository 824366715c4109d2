import json


def handle(peaks):
    rivers = []
    for path in peaks:
        with open(path) as peak:
            rivers.append(json.load(peak))
    rivers.sort(key=lambda river: river["peak"], reverse=True)
    with open("report.txt", "w") as report:
        report.write(f"{'river':<8} {'peak, m':>8} {'hour':>5}  modelled in\n")
        for river in rivers:
            where = f"job {river['job']} on node {river['node']}"
            report.write(f"{river['river']:<8} {river['peak']:>8.3f} {river['hour']:>5}  {where}\n")
    return {"report": "report.txt", "highest": rivers[0]["river"]}
