"""The app as its users write it: FastAPI, SQLAlchemy's ORM, a session per request, PyJWT with the PEM.

Its habits are kept: it reads the row, changes it in Python and commits, so that one of two concurrent
requests overwrites the other; and it creates a missing row.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException
from sqlalchemy import DateTime, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

DEFAULT_AMOUNT = int(os.environ.get("QUOTA_DEFAULT_ALLOWANCE", "20"))
PUBLIC_KEY = os.environ["CLERK_JWT_KEY"]
ISSUER = os.environ["CLERK_ISSUER"]
PARTIES = os.environ["CLERK_AUTHORIZED_PARTIES"].split(",")

engine = create_engine(os.environ["DATABASE_URL"].replace("postgres://", "postgresql+psycopg://"))
SessionLocal = sessionmaker(bind=engine, autoflush=False)


class Base(DeclarativeBase):
    pass


class ChallengeQuota(Base):
    __tablename__ = "challenge_quotas"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(unique=True, index=True)
    quota_remaining: Mapped[int]
    last_reset_date: Mapped[datetime] = mapped_column(DateTime(timezone=True))


app = FastAPI()


def get_db() -> Iterator[Session]:
    db = SessionLocal()
    try:
        yield db
    finally:
        db.close()


def current_user(authorization: Annotated[str, Header()] = "") -> str:
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "),
            PUBLIC_KEY,
            algorithms=["RS256"],
            issuer=ISSUER,
            leeway=5,
            options={"require": ["exp", "nbf", "iat", "sub", "sid"]},
        )
    except jwt.PyJWTError as error:
        raise HTTPException(401, "Invalid token") from error
    if claims.get("azp") not in PARTIES:
        raise HTTPException(401, "Invalid party")
    return str(claims["sub"])


Db = Annotated[Session, Depends(get_db)]
UserId = Annotated[str, Depends(current_user)]


def current_quota(db: Session, user_id: str) -> ChallengeQuota:
    quota = db.query(ChallengeQuota).filter(ChallengeQuota.user_id == user_id).first()
    now = datetime.now(UTC)
    if quota is None:
        quota = ChallengeQuota(user_id=user_id, quota_remaining=DEFAULT_AMOUNT, last_reset_date=now)
        db.add(quota)
        db.commit()
    elif now - quota.last_reset_date >= timedelta(hours=24):
        quota.quota_remaining = DEFAULT_AMOUNT
        quota.last_reset_date = now
        db.commit()
    return quota


def as_json(quota: ChallengeQuota) -> dict[str, Any]:
    return {
        "user_id": quota.user_id,
        "quota_remaining": quota.quota_remaining,
        "last_reset_date": quota.last_reset_date,
    }


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.get("/api/quota")
def get_quota(db: Db, user_id: UserId) -> dict[str, Any]:
    return as_json(current_quota(db, user_id))


@app.post("/api/v1/quota/consume", status_code=201)
def consume(body: dict[str, int], db: Db, user_id: UserId) -> dict[str, Any]:
    cost = body.get("cost", 1)
    quota = current_quota(db, user_id)
    if quota.quota_remaining < cost:
        raise HTTPException(429, "Quota exhausted")
    quota.quota_remaining -= cost
    db.commit()
    return as_json(quota)
