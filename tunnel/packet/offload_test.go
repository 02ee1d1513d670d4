package packet

import "testing"

func TestOffloadString(t *testing.T) {
	for o, want := range map[Offload]string{
		0:                                "none",
		0x80:                             "none",
		OffloadChecksum:                  "checksum",
		OffloadChecksum | OffloadTSO6:    "checksum+tso6",
		OffloadAll:                       "checksum+tso4+tso6+uso",
		OffloadAll | 0x40:                "checksum+tso4+tso6+uso",
		OffloadTSO4 | OffloadUSO | 1<<7:  "tso4+uso",
		OffloadAll &^ OffloadUSO & 0x0f:  "checksum+tso4+tso6",
		OffloadAll &^ OffloadTSO4 & 0x0f: "checksum+tso6+uso",
	} {
		if got := o.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint8(o), got, want)
		}
	}
}

func TestOffloadUsable(t *testing.T) {
	for o, want := range map[Offload]Offload{
		0:                         0,
		OffloadTSO4 | OffloadUSO:  0,
		OffloadChecksum:           OffloadChecksum,
		0xff:                      OffloadAll,
		OffloadAll &^ OffloadTSO4: OffloadAll &^ OffloadTSO4,
	} {
		if got := o.usable(); got != want {
			t.Errorf("%v: %v, want %v", o, got, want)
		}
	}
}
