create table chains (
    key    text primary key,
    length bigint not null,
    chain  text not null,
    last   text not null
);
