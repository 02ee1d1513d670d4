package packet

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

// TestDeviceUnsupported asks for the name of a system that has no devices.
func TestDeviceUnsupported(t *testing.T) {
	if runtime.GOOS == "linux" {
		if !errors.Is(ErrUnsupported, errors.ErrUnsupported) {
			t.Error("ErrUnsupported is not that of package errors")
		}
		return
	}
	for _, open := range []func(*DeviceOptions) (*Device, error){OpenTAP, OpenTUN} {
		_, err := open(nil)
		if !errors.Is(err, ErrUnsupported) || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), runtime.GOOS) {
			t.Error(err)
		}
	}
}

func TestDeviceOptionsDefaults(t *testing.T) {
	var none *DeviceOptions
	if o := none.withDefaults(); o.MTU != 1500 || o.QueueLen != 1000 {
		t.Errorf("%+v", o)
	}
	given := &DeviceOptions{Name: "a", MTU: 9000, QueueLen: 1, NoOffload: true}
	o := given.withDefaults()
	if o.Name != "a" || o.MTU != 9000 || o.QueueLen != 1 || !o.NoOffload {
		t.Errorf("%+v", o)
	}
}
