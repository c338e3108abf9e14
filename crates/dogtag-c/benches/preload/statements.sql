pragma journal_mode = off;
pragma synchronous = off;
create table words(id integer primary key, hash int, word text, weight real);
with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < 200000)
insert into words select n, (n * 7919) % 1000003, 'word ' || ((n * 104729) % 1000003), n * 0.5 from numbers;
create index by_hash on words(hash);
create index by_word on words(word);
select count(*), sum(hash), max(word) from words where hash between 1000 and 500000;
select substr(word, 1, 7) as start, count(*), avg(weight) from words group by start order by 2 desc, 1 limit 5;
select count(*) from words as a join words as b on a.hash = b.id where a.id < 100000;
select sum(length(json_object('hash', hash, 'word', word))) from words;
delete from words where id % 3 = 0;
vacuum;
pragma integrity_check;
