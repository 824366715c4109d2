import math

# Made once for each process, not for each gauge.
HOURS = [math.sin(hour / 4) for hour in range(240)]


def handle(gauge, window):
    levels = [2 + wave * (gauge % 7) / 10 for wave in HOURS]
    smooth = [sum(levels[hour : hour + window]) / window for hour in range(len(levels) - window + 1)]
    with open("levels.csv", "w") as table:
        table.writelines(f"{gauge},{hour},{level:.3f}\n" for hour, level in enumerate(smooth))
    print(f"gauge {gauge}: {len(smooth)} hours")
    return {"table": "levels.csv", "highest": round(max(smooth), 3)}
