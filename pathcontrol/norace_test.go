//go:build !race

package pathcontrol

const underRace = false // see race_test.go
