create table lanes (
    lane        text primary key,
    length      bigint not null,
    chain       text not null,
    last        text not null,
    last_offset bigint not null
);
