#!/usr/bin/env bash
# Package: prefect 3.8.8, on Python 3.11
#
# An IntervalSchedule of one day with a time zone has no fixed hour: from where the dates are asked decides it.
# Dates are walked by wall-clock days from the first one at or after the asked start, but that first one is
# counted from the anchor in days of 24 elapsed hours. For an anchor at 09:00 in winter, 1 April lies at 09:00
# if the dates are asked from before the change of the clocks and at 10:00 if they are asked from after it.
#
# Who it hurts: a daily retraining "at nine". The scheduler asks again and again and looks days ahead: runs it
# had laid before the change stay at 09:00, those it lays after it come at 10:00, so days near the change can get
# both, and all summer the job is an hour late.
# Remedy: CronSchedule("0 9 * * *", timezone=...), which keeps its hour.
#
# Seen (Europe/Berlin, anchor 2026-01-01 09:00):
#   every 24 h 1 April, asked from 27 March: 09:00, asked from 30 March: 10:00
#   cron       1 April, asked from 27 March: 09:00, asked from 30 March: 09:00
#   every 24 h 27 October, asked from 23 October: 10:00, asked from 26 October: 09:00
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile prefect==3.8.8 fastapi==0.150.0 tzdata==2026.6

PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 "$work/venv/bin/python" - <<'PY'
import asyncio
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

NAME = "Europe/Berlin"
zone = ZoneInfo(NAME)
daily = IntervalSchedule(
    interval=timedelta(days=1), anchor_date=datetime(2026, 1, 1, 9, tzinfo=zone), timezone=NAME
)
cron = CronSchedule(cron="0 9 * * *", timezone=NAME)


def hours(schedule, start):
    """Day to wall-clock time of the next ten dates."""
    dates = asyncio.run(schedule.get_dates(n=10, start=datetime(*start, tzinfo=zone)))
    return {moment.astimezone(zone).date(): moment.astimezone(zone).strftime("%H:%M") for moment in dates}


BEFORE, AFTER, AUTUMN = (2026, 3, 27), (2026, 3, 30), (2026, 10, 23)
day = date(2026, 4, 1)
seen = {
    name: (hours(schedule, BEFORE)[day], hours(schedule, AFTER)[day])
    for name, schedule in (("every 24 h", daily), ("cron", cron))
}
for name, (before, after) in seen.items():
    print(f"{name:10} 1 April, asked from 27 March: {before}, asked from 30 March: {after}")
assert seen == {"every 24 h": ("09:00", "10:00"), "cron": ("09:00", "09:00")}

autumn = hours(daily, AUTUMN)
last_summer, winter = autumn[date(2026, 10, 24)], autumn[date(2026, 10, 27)]
again = hours(daily, (2026, 10, 26))[date(2026, 10, 27)]
print(f"every 24 h 27 October, asked from 23 October: {winter}, asked from 26 October: {again}")
assert (last_summer, winter, again) == ("10:00", "10:00", "09:00")
PY
