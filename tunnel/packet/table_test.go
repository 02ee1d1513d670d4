package packet

import (
	"sync"
	"testing"
	"time"
)

// Readers of the table go on while it changes, and what is in it stays to be found.
func TestTableConcurrency(t *testing.T) {
	table := newMACTable(4096, 64, 4, time.Minute)
	steady := new(switchPort)
	const mac = 0x0200_0000_0001
	if d := table.learn(mac, steady, 1); d != dropNone {
		t.Fatal(d)
	}
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if p := table.lookup(mac, 1); p != steady {
					t.Error("the steady one is lost")
					return
				}
				if table.learn(mac, steady, int64(2*time.Second)) != dropNone {
					t.Error("the steady one is refused")
					return
				}
			}
		})
	}
	for w := range 4 {
		writers.Go(func() {
			for range 20 {
				p := new(switchPort)
				for n := range 100 {
					want := dropNone
					if n >= 64 {
						want = DropTable
					}
					if d := table.learn(uint64(0x0200_0001_0000+w*1000+n), p, 1); d != want {
						t.Errorf("address %d: %v", n, d)
						return
					}
				}
				table.forget(p)
				if d := table.learn(uint64(0x0200_0001_0000+w*1000), p, 1); d != dropNone || p.macs != 0 {
					t.Errorf("a port that is gone has learned: %v, %d", d, p.macs)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	each, all := table.sizes(1, []*switchPort{steady})
	if each[0] != 1 || all != 1 || table.extra != 0 {
		t.Errorf("left: %v, %d, %d beyond what is sure", each, all, table.extra)
	}
}

// Addresses that were chosen to fall into one chain with one seed do not with another.
func TestTableSpreads(t *testing.T) {
	table := newMACTable(4096, 4096, 1, 0)
	p := &switchPort{trusted: true}
	for n := range 4096 {
		table.learn(0x0200_0000_0000+uint64(n)<<20, p, 1)
	}
	longest := 0
	for i := range table.buckets {
		n := 0
		for e := table.buckets[i].Load(); e != nil; e = e.next.Load() {
			n++
		}
		longest = max(longest, n)
	}
	if longest > 64 {
		t.Errorf("a chain of %d of %d addresses", longest, 4096)
	}
}

// A port that was seen at an address too long ago does not keep it.
func TestTableOldIsFree(t *testing.T) {
	table := newMACTable(16, 16, 2, time.Minute)
	a, b := new(switchPort), new(switchPort)
	now := int64(1)
	if d := table.learn(5, a, now); d != dropNone {
		t.Fatal(d)
	}
	if d := table.learn(5, b, now); d != DropTaken {
		t.Errorf("a live one: %v", d)
	}
	now += int64(time.Minute) + 1
	if p := table.lookup(5, now); p != nil {
		t.Error("an old one is found")
	}
	if d := table.learn(5, b, now); d != dropNone || table.lookup(5, now) != b || a.macs != 0 || b.macs != 1 {
		t.Errorf("an old one: %v, %d and %d", d, a.macs, b.macs)
	}
	forever := newMACTable(16, 16, 2, 0)
	forever.learn(5, a, 1)
	if forever.lookup(5, int64(1000*time.Hour)) != a {
		t.Error("it aged")
	}
}
